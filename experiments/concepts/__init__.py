"""What concept_bias.py is made of: its texts, training sets, classifiers and the table of cells."""
