"""Using a trained student: predictions, export and the service. This package imports neither
methods nor training.
"""
