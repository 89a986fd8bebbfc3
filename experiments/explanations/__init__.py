"""What a run of focus.py explains: the network, and every score of its mosaics."""
