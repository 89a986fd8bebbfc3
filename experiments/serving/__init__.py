"""The server behind experiments/serve.py: requests over HTTP in the shapes of OpenAI's interface."""
