"""Every object that was received: acknowledged when it is safe, indexed, found again, checked, kept as long as the rules say."""
