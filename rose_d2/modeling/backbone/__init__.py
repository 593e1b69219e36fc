"""The large multimodal model as a detectron2 backbone."""
