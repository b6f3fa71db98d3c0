# A doorbell for each stream. No dead-letter queues, since the messages carry no data: what a lost one pointed to is found in the
# archive.

resource "aws_sqs_queue" "bell" {
  for_each = var.streams

  name       = "${var.name}-${each.key}.fifo"
  fifo_queue = true

  # The importer names each message after its object.
  content_based_deduplication = false

  # The transformer asks for both in each receive; these are for whoever looks by hand.
  visibility_timeout_seconds = 4
  receive_wait_time_seconds  = 20

  # Four days: an older bell says nothing that the archive does not.
  message_retention_seconds = 345600

  sqs_managed_sse_enabled = true

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "OnlyTls"
      Effect    = "Deny"
      Principal = "*"
      Action    = "sqs:*"
      Resource  = "arn:aws:sqs:${var.region}:${data.aws_caller_identity.me.account_id}:${var.name}-${each.key}.fifo"
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })

  tags = { Stream = each.key }
}
