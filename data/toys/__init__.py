"""Small seeded stand-ins for real data."""
