"""Run plans: draw, save and record images, replay and compare them, import and describe them."""
