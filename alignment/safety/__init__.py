"""Safety of answers: who judges them, and the rates that follow: attacks that succeed, refusals that should not be."""
