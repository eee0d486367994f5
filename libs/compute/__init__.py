"""Long and heavy work on Ray: what engines see, the actor that carries them, the child process that speaks to Ray."""
