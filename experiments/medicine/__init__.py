"""What the stages of a medical assistant share: questions, tuning, prompting, red teams."""
