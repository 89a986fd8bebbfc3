"""Glue that the experiments on safety share: judges as a config names them."""
