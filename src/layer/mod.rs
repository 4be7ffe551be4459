//! Layers: tar streams as trees, objects and indexes. Pure: no I/O.
