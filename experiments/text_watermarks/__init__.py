"""What llm_watermark.py is made of: its texts, the model that learns some by heart, scores, marked answers."""
