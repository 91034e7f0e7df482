"""Live capture: the probes, the ring, this host's VMs and devices. The one room that knows bcc."""
