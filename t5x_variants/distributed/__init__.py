"""Several devices and several hosts: meshes, membership, preemption."""
