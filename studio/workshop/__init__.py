"""What training from the page needs: image sets, orders, and runs as processes of their own."""
