"""A trained student in use: predictions, export, the service. Needs neither methods nor
training.
"""
