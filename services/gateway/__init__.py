"""The one HTTP door of the mesh. It keeps no truth of its own."""
