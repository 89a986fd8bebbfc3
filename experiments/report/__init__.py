"""The pages that runs and sweeps leave: python -m experiments.report WORKDIR"""
