"""What training runs share: state, step, loop, optimizer, sharding, checkpoints."""
