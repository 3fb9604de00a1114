"""What keeps patients and models safe."""
