"""intxtrace: which way did each INTx interrupt of a passed-through PCI device take, and what did it cost?"""

__version__ = "0.1.0"
