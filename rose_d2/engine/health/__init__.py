"""What a running training tells about itself."""
