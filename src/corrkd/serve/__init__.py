"""Using a trained student: predictions, export and the service. Imports neither methods nor
training.
"""
