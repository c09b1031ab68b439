"""Many fits from one table: resumable, in processes or as Ray tasks; a failed case is a row."""
