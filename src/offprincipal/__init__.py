"""A microscope and a steering wheel for what reinforcement learning does to the weights of a language model."""

__version__ = "0.1.0"
