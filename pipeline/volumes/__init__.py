"""What is read: volumes as (C, Z, Y, X) boxes, wherever and however they are stored."""
