# The doorbell. No dead-letter queue, since the messages carry no data: what a lost one pointed to is found in the archive.

resource "aws_sqs_queue" "bell" {
  name       = "${var.name}-${var.stream}.fifo"
  fifo_queue = true

  # The importer names each message after its object.
  content_based_deduplication = false

  # The transformer asks for both in each receive; these are for whoever looks by hand.
  visibility_timeout_seconds = 4
  receive_wait_time_seconds  = 20

  # Four days: an older bell says nothing that the archive does not.
  message_retention_seconds = 345600

  sqs_managed_sse_enabled = true
}

resource "aws_sqs_queue_policy" "bell" {
  queue_url = aws_sqs_queue.bell.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "OnlyTls"
      Effect    = "Deny"
      Principal = "*"
      Action    = "sqs:*"
      Resource  = aws_sqs_queue.bell.arn
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })
}
