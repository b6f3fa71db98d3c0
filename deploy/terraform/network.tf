# A VPC without a NAT: the hosts have public addresses and no inbound rule, the database has neither a public address nor a
# way out.

data "aws_availability_zones" "here" {
  state = "available"

  # Local zones have neither RDS nor all types.
  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

locals {
  # What the importers talk to; 443 unless the address has a port.
  source_ports = [for stream in var.streams : try(tonumber(regex("^https://[^/]*:([0-9]+)(/|$)", stream.source_url)[0]), 443)]
}

resource "aws_vpc" "main" {
  cidr_block           = var.network
  enable_dns_support   = true
  enable_dns_hostnames = true

  tags = { Name = var.name }
}

# What nobody chose a group for can talk to nobody.
resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.main.id
}

# ---- Where the hosts are ----

resource "aws_subnet" "public" {
  vpc_id            = aws_vpc.main.id
  cidr_block        = cidrsubnet(var.network, 4, 0)
  availability_zone = data.aws_availability_zones.here.names[0]

  tags = { Name = "${var.name}-public" }
}

resource "aws_internet_gateway" "main" {
  vpc_id = aws_vpc.main.id

  tags = { Name = var.name }
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.main.id

  tags = { Name = "${var.name}-public" }
}

resource "aws_route" "internet" {
  route_table_id         = aws_route_table.public.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.main.id
}

resource "aws_route_table_association" "public" {
  subnet_id      = aws_subnet.public.id
  route_table_id = aws_route_table.public.id
}

# The archive is reached without the internet. No policy of its own: it would have to name buckets of AWS that the SSM agent
# reads, and the hosts' roles already say which objects they may touch.
resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.main.id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.public.id]

  tags = { Name = "${var.name}-s3" }
}

# ---- Where the database is ----

# Two zones, because a subnet group wants them, and a standby is in the other one.
resource "aws_subnet" "private" {
  count = 2

  vpc_id            = aws_vpc.main.id
  cidr_block        = cidrsubnet(var.network, 4, 1 + count.index)
  availability_zone = data.aws_availability_zones.here.names[count.index]

  tags = { Name = "${var.name}-private-${count.index}" }
}

# No route but the VPC's own.
resource "aws_route_table" "private" {
  vpc_id = aws_vpc.main.id

  tags = { Name = "${var.name}-private" }
}

resource "aws_route_table_association" "private" {
  count = length(aws_subnet.private)

  subnet_id      = aws_subnet.private[count.index].id
  route_table_id = aws_route_table.private.id
}

# ---- Who may talk to whom ----

# The groups are named by prefix and made before the old ones go, since a group in use cannot be deleted.
resource "aws_security_group" "importer" {
  name_prefix = "${var.name}-importer-"
  description = "The importer: nothing comes in, HTTP and HTTPS go out"
  vpc_id      = aws_vpc.main.id

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_security_group" "transformer" {
  name_prefix = "${var.name}-transformer-"
  description = "The transformer: nothing comes in, HTTP and HTTPS go out, and the database can be reached"
  vpc_id      = aws_vpc.main.id

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_security_group" "database" {
  name_prefix = "${var.name}-database-"
  description = "The database: only the transformer comes in, nothing goes out"
  vpc_id      = aws_vpc.main.id

  lifecycle {
    create_before_destroy = true
  }
}

locals {
  # Ubuntu's mirrors are HTTP; what comes from them is signed.
  ways_out = merge(
    { for port in toset(concat([80, 443], local.source_ports)) : "importer-${port}" => { group = aws_security_group.importer.id, port = port } },
    { for port in toset([80, 443]) : "transformer-${port}" => { group = aws_security_group.transformer.id, port = port } },
  )
}

resource "aws_vpc_security_group_egress_rule" "out" {
  for_each = local.ways_out

  security_group_id = each.value.group
  description       = "To any host at port ${each.value.port}"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = each.value.port
  to_port           = each.value.port
}

resource "aws_vpc_security_group_egress_rule" "transformer_to_database" {
  security_group_id            = aws_security_group.transformer.id
  description                  = "To the database"
  referenced_security_group_id = aws_security_group.database.id
  ip_protocol                  = "tcp"
  from_port                    = local.database_port
  to_port                      = local.database_port
}

resource "aws_vpc_security_group_ingress_rule" "database_from_transformer" {
  security_group_id            = aws_security_group.database.id
  description                  = "From the transformer"
  referenced_security_group_id = aws_security_group.transformer.id
  ip_protocol                  = "tcp"
  from_port                    = local.database_port
  to_port                      = local.database_port
}
