"""Scenes of objects at free places: what an object can be, where it may stand, how it is drawn, what is said of it."""
