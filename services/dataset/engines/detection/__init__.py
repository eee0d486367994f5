"""Boxes for what somebody asks for in words: drawn scenes, a detector trained on them, adapters for others."""
