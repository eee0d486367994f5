"""The main job of the platform on real input, through its front door: from raw text to a served, watched model."""
