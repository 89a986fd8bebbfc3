"""What meta_ref.py is made of: its tasks, its trainings, its tests on new tasks."""
