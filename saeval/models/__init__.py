"""Language models as subjects: loaded, read and steered at any module."""
