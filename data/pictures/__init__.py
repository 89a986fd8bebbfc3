"""Batches of pictures: folders, tables, MAMe, mosaics."""
