"""Pictures of ROSE's output: masks with their generated names, and sheets of such pictures."""

from rose_d2.visualization.colours import colour_of
from rose_d2.visualization.sheets import contact_sheet
from rose_d2.visualization.visualizer import RoseVisualizer, drawing_factor

__all__ = ["RoseVisualizer", "colour_of", "contact_sheet", "drawing_factor"]
