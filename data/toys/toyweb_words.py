"""What data/toys/toyweb.py draws from, as toyweb.yaml has it: packs and syllables by language, foreign sentences."""

from data.toys import tables

_TABLES = tables.load("toyweb")
PACKS, SYLLABLES, FOREIGN = _TABLES["packs"], _TABLES["syllables"], _TABLES["foreign"]
