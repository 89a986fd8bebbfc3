"""What the experiment on guided decoding is made of: training, writing, comparing."""
