"""What people are told: rows, pictures, pages; and what a store or a checkpoint is."""
