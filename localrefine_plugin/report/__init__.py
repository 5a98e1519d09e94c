"""What a person sees of a run: its state read from the run folder, pictures, words and the HTML page. Needs matplotlib,
and nothing of Scipion."""
