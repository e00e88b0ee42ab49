"""What people look at: report pages."""
