"""Every knob, declared once, and the ways to turn it."""
