"""What sketch_gnn.py is made of: arms that train a network, baselines on parts of a graph, and the curve over sizes."""
