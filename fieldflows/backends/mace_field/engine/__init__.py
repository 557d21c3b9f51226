"""The fast engine: the same function of the same weights as the network, in plain torch.

The network (``network.py``) is the reference.  The engine evaluates it with the symmetric contraction as a nested
sparse polynomial (``contraction``), sums over neighbors as matrix products on padded neighbor lists (``layout``,
``shells`` for the first layer and ``neighbors`` for the others), radial functions with their derivatives at the
distinct distances only (``radial``, ``series``), and the field blocks collapsed into one matrix per path (``layers``).
Functions with derivatives of their own let autograd enter only those that are asked for (``branches``).
"""
