"""Models that are asked exam questions, for careqa.py and medguard.py."""
