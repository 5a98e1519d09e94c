"""Jobs of other programs that run the engine without Scipion."""
