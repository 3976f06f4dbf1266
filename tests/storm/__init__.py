"""Storms: two or three nodes under load while their processes are killed and stopped, with a recorded history that is
checked.
"""
