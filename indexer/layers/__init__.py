"""Layers whose per-example gradients come from hooks: one forward and one backward pass for a whole batch.

A layer's input and the gradient at its output hold all that its parameters' gradients need. `kinds` and `norms` say
how for each type of module, `modules` finds them in a model, `taps` runs the passes, `gradients` forms slabs.
"""
