"""The fast engine: the same function of the same weights as the network, in plain torch.

The network (``network.py``) is the reference.  The engine evaluates it with the symmetric contraction as a sparse
polynomial, features laid out component by component, neighbor lists padded so that sums over neighbors are matrix
products, the radial network at the distinct distances only, and the field blocks collapsed into one matrix per path.
"""
