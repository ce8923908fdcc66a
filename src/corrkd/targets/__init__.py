"""What is predicted: each kind of target is an object with its loss, response, metrics and
display.
"""
