"""What tells crafted passages from clean ones, at what cost in clean quality; and hardening."""
