"""What the experiment on marks in pictures is made of: its pictures, its attacks and its cells."""
