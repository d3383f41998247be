"""Plan renders: resolve everything that determines the pictures before any weights are loaded. Without torch."""
